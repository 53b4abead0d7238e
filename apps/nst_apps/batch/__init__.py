"""`nst batch`: stylize millions of images and long videos on the workers of a Ray cluster."""
