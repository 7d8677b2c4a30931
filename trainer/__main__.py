"""`python -m ablatrix.trainer`: train one run."""

if __name__ == "__main__":
    from ablatrix.trainer.rundir.program import search_working_folder_last

    search_working_folder_last()
    from ablatrix.trainer.cli import leave, main

    leave(main())
