"""Run `nst export` as `python -m nst_export`."""

from nst_export.cli import app

app()
