"""Jobs of a mapper, a combiner and a reducer in plain Python."""
