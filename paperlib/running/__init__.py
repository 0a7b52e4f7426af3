"""The notebooks 01 to 07 headlessly, and one notebook as papermill runs it (`reproduce.reproduce`)."""
