"""One training run: a folder with a spec in, events and a model package out. Pure torch; knows no broker, database or web library."""
