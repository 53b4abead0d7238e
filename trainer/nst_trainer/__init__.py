"""Styles learned and painted: the loss network, the losses, the networks, the two ways to a picture.

The feed-forward way (Johnson et al. 2016) trains a network once and stylises in milliseconds;
the optimisation (Gatys et al. 2016) needs no training and minutes a picture.
"""
