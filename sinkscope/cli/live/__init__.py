"""A report with its model beside it: typed texts are measured, rows of queries read when asked for."""
