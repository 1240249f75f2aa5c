"""Alembic's migrations, one file per revision, imported only when one is due."""
