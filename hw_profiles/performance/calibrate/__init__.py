"""From data files of measurements to coefficients: readers, fits, and the whole run."""
