package postgres

// walManagers are the resource managers in the WAL that an extension brings (ids
// from 128 on). Replaced by the scan of the WAL.
func (r *restoration) walManagers() []int { return r.managers }
