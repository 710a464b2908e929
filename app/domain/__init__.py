"""Pure rules: no clock, no await, no import but the standard library's data modules."""
