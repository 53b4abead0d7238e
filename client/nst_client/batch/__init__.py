"""`nst batch`: images by the million on the workers of a Ray cluster."""
