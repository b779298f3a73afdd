"""Data sets that statistics are taken from: `opening` knows the kinds by their form, one file each."""
