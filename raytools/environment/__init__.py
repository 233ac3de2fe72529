"""The conda environment of a cluster: spec -> lock -> build -> manifest -> verify."""
