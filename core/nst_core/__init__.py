"""What every other package of nst stands on: the contract's names, errors, files, images, the console."""
