"""Side-by-side timings against named peers; `make bench` runs all. Each prints a ratio and its spread."""
