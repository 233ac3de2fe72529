"""One file per subject; each check is a pure function in that file's CHECKS table."""
