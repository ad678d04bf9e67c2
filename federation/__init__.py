"""What the server and a hospital must agree on: settings, messages, updates."""
