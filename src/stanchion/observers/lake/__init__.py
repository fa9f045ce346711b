"""Events as Parquet files in an object store: rows, stores, and the compaction of small files."""
