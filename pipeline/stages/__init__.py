"""The stages of a build, in order: plan, split, encode, select, pack, seal. One file each."""
