"""`python -m anomaly`: the same as the command `anomaly`."""

from anomaly.pipelines.__main__ import main

if __name__ == "__main__":
    main()
