"""Problems to train: data inside packages, and the papers' own."""
