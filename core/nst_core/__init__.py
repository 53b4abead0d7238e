"""The foundation of nst's packages: the contract's names, errors, files, images and the console."""
