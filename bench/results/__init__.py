"""Results: the Parquet ledger, its statistics and its leaderboards."""
