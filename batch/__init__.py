"""Many series: supervised workers on one machine or a cluster, the ledger, and the run over a folder."""
