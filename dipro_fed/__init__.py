"""The command line: `dipro-fed` reaches everything a user does."""
