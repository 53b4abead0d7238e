"""Neural style transfer: the loss network, the losses, feed-forward networks, training and optimisation.

Training (Johnson et al. 2016) makes a network that stylizes an image in milliseconds. Optimisation
(Gatys et al. 2016) needs no training and takes minutes per image.
"""
