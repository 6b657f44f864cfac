"""Reports on runs, from the files of their folders alone: in the terminal, and as one page of HTML."""
