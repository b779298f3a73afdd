"""What goes wrong around swatool: kills, full disks, signals, files that change, races; and what is left."""
