"""Neural style transfer: the loss network, the losses, the networks, and the two ways to a stylized image.

The feed-forward way (Johnson et al. 2016) trains a network once and stylizes in milliseconds;
the optimisation (Gatys et al. 2016) needs no training, and minutes for each image.
"""
