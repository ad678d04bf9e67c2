"""What is wrong with a secure aggregation, in words."""


class SecureError(ValueError):
    """A message, key, share or update that cannot be used; names the site, what was expected and what came."""
