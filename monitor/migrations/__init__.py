"""How the database came to its present tables; Alembic runs what a database lacks."""
