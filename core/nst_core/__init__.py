"""What every other package of nst stands on: pictures, the root of the exceptions, the console."""
