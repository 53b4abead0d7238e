"""`python -m nst_export` is `nst-export`, wherever its script is."""

from nst_export.cli import app

app()
