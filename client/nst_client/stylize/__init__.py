"""`nst stylize` and `nst styles`: stylize many images in a run, list styles and draw contact sheets."""
