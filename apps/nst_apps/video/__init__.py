"""`nst video` and `nst webcam`: files frame by frame, and live cameras."""
