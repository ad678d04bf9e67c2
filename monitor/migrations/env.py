"""Run by Alembic alone, with the connection that `monitor.database` gives it."""

from alembic import context

from monitor.database import VERSION_TABLE
from monitor.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
