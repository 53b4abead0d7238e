"""`nst stylize` and `nst styles`: many images in a run, and contact sheets of styles."""
