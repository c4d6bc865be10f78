"""Reading and writing that can fail: files that are there as a whole or not at all, checkpoints, and the hub.

atomic             whole files
checkpoint_files   checkpoints on a disk: the newest one that is intact
hub_access         whether the hub can be reached

What may live here: what knows of disks and networks, and of nothing that is written or read.
"""
