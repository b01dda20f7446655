"""`python -m contrails`, which is how jobs call the frozen copy of the package."""

from contrails.cli.main import main

main()
