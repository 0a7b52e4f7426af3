"""The notebooks 01 to 07 headlessly (`reproduce`), one as papermill runs it (`notebooks`)."""
