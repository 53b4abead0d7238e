"""`nst stylize` and `nst styles`: many images in one run, and contact sheets."""
