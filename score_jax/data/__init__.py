"""Data sets: one constructor per module, giving a `base.DataSet`; `order` picks a step's batch."""
