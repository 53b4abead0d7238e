"""Style transfer by optimising the image itself (Gatys et al. 2015, 2016)."""
