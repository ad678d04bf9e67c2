"""Watching runs: what their folders say goes into a database, and a page shows it. The server needs none of it."""
