"""`nst video` and `nst webcam`: stylize video files and live cameras."""
