package postgres

import (
	"maps"
	"strings"
)

// allowed are the settings that a restored server takes over: what shapes plans,
// memory, the log and formats inside the server. All that is not here is put out
// of force, settings of versions to come too: it may name a place or a host, run a
// command, load code, act on others, or keep the server from starting here.
// Whether a value is one here is the server's own word (see trial).
var allowed = settingsOf(
	// Planning.
	`constraint_exclusion cpu_index_tuple_cost cpu_operator_cost cpu_tuple_cost cursor_tuple_fraction default_statistics_target
	enable_async_append enable_bitmapscan enable_distinct_reordering enable_gathermerge enable_group_by_reordering enable_hashagg enable_hashjoin
	enable_incremental_sort enable_indexonlyscan enable_indexscan enable_material enable_memoize enable_mergejoin enable_nestloop enable_parallel_append
	enable_parallel_hash enable_partition_pruning enable_partitionwise_aggregate enable_partitionwise_join enable_presorted_aggregate
	enable_self_join_elimination enable_seqscan enable_sort enable_tidscan from_collapse_limit geqo geqo_effort geqo_generations geqo_pool_size geqo_seed
	geqo_selection_bias geqo_threshold join_collapse_limit min_parallel_index_scan_size min_parallel_table_scan_size parallel_leader_participation
	parallel_setup_cost parallel_tuple_cost plan_cache_mode random_page_cost recursive_worktable_factor seq_page_cost effective_cache_size
	jit jit_above_cost jit_expressions jit_inline_above_cost jit_optimize_above_cost jit_tuple_deforming compute_query_id`,
	// Memory, and how many: what recovery demands comes from pg_control on top of it.
	`autovacuum_work_mem hash_mem_multiplier logical_decoding_work_mem maintenance_work_mem shared_buffers temp_buffers temp_file_limit vacuum_buffer_usage_limit
	work_mem gin_fuzzy_search_limit gin_pending_list_limit max_connections max_locks_per_transaction max_pred_locks_per_page
	max_pred_locks_per_relation max_pred_locks_per_transaction max_prepared_transactions max_replication_slots max_wal_senders max_worker_processes
	max_parallel_maintenance_workers max_parallel_workers max_parallel_workers_per_gather effective_io_concurrency maintenance_io_concurrency io_combine_limit
	synchronize_seqscans`,
	// WAL, checkpoints and vacuum, inside the data directory.
	`backend_flush_after bgwriter_delay bgwriter_flush_after bgwriter_lru_maxpages bgwriter_lru_multiplier checkpoint_completion_target checkpoint_flush_after
	checkpoint_timeout checkpoint_warning commit_delay commit_siblings max_wal_size min_wal_size synchronous_commit track_commit_timestamp wal_compression
	wal_init_zero wal_log_hints wal_recycle wal_skip_threshold wal_writer_delay wal_writer_flush_after
	autovacuum autovacuum_analyze_scale_factor autovacuum_analyze_threshold autovacuum_freeze_max_age autovacuum_max_workers
	autovacuum_multixact_freeze_max_age autovacuum_naptime autovacuum_vacuum_cost_delay autovacuum_vacuum_cost_limit
	autovacuum_vacuum_insert_scale_factor autovacuum_vacuum_insert_threshold autovacuum_vacuum_max_threshold autovacuum_vacuum_scale_factor
	autovacuum_vacuum_threshold vacuum_cleanup_index_scale_factor vacuum_cost_delay vacuum_cost_limit vacuum_cost_page_dirty vacuum_cost_page_hit
	vacuum_cost_page_miss vacuum_failsafe_age vacuum_freeze_min_age vacuum_freeze_table_age vacuum_max_eager_freeze_failure_rate
	vacuum_multixact_failsafe_age vacuum_multixact_freeze_min_age vacuum_multixact_freeze_table_age vacuum_truncate`,
	// Formats, locale, and what statements mean.
	`array_nulls backslash_quote bytea_output check_function_bodies client_encoding client_min_messages createrole_self_grant datestyle
	default_table_access_method default_tablespace default_text_search_config default_toast_compression default_transaction_deferrable
	default_transaction_isolation default_with_oids escape_string_warning extra_float_digits icu_validation_level intervalstyle lc_messages lc_monetary
	lc_numeric lc_time lo_compat_privileges operator_precedence_warning password_encryption quote_all_identifiers row_security scram_iterations search_path
	standard_conforming_strings temp_tablespaces timezone timezone_abbreviations transform_null_equals xmlbinary xmloption`,
	// How long sessions may take.
	`authentication_timeout deadlock_timeout idle_in_transaction_session_timeout idle_session_timeout lock_timeout statement_timeout transaction_timeout`,
	// What goes into the log and the statistics; where to is not of these.
	`cluster_name log_autovacuum_min_duration log_checkpoints log_connections log_disconnections log_duration log_error_verbosity
	log_line_prefix log_lock_failures log_lock_waits log_min_duration_sample log_min_duration_statement log_min_error_statement log_min_messages
	log_parameter_max_length log_parameter_max_length_on_error log_recovery_conflict_waits log_replication_commands log_startup_progress_interval
	log_statement log_statement_sample_rate log_temp_files log_timezone log_transaction_sample_rate
	stats_fetch_consistency track_activities track_activity_query_size track_cost_delay_timing track_counts track_functions track_io_timing
	track_wal_io_timing update_process_title`,
)

func settingsOf(groups ...string) map[string]bool {
	set := map[string]bool{}
	for _, g := range groups {
		for _, name := range strings.Fields(g) {
			set[name] = true
		}
	}
	return set
}

// never are the settings that a restored server does not take over even with
// --live: they lead into the original's files, or make it follow the original.
var never = settingsOf(`archive_cleanup_command archive_command archive_library archive_mode config_file data_directory external_pid_file hba_file ident_file
	log_directory log_filename primary_conninfo primary_slot_name promote_trigger_file recovery_end_command recovery_min_apply_delay recovery_target
	recovery_target_action recovery_target_inclusive recovery_target_lsn recovery_target_name recovery_target_time recovery_target_timeline
	recovery_target_xid restore_command standby_mode stats_temp_directory trigger_file sync_replication_slots`)

// fate is what becomes of a library that the original preloaded.
type fate int

const (
	takenOut fate = iota // it has a worker that acts, or changes what sessions may do
	harmless             // it watches or hints inside the server
	silenced             // its worker is kept still by settings
	manager              // it owns a resource manager of the WAL, and is kept where the WAL needs one
)

// library is what is known of one.
type library struct {
	fate     fate
	settings map[string]string // that keep it still
}

// known are the libraries that this program knows; another is taken out, unless
// the WAL needs a resource manager that may be its own. A library whose worker can
// be kept still only in some of its versions (pg_cron) is taken out: an older one
// takes the setting for a word that it does not know, and acts.
var known = map[string]library{
	"auth_delay": {fate: harmless}, "auto_explain": {fate: harmless}, "passwordcheck": {fate: harmless}, "pg_hint_plan": {fate: harmless},
	"pg_qualstats": {fate: harmless}, "pg_stat_kcache": {fate: harmless}, "pg_stat_statements": {fate: harmless}, "pg_trgm": {fate: harmless},
	"pg_wait_sampling": {fate: harmless}, "pgaudit": {fate: harmless}, "plpgsql": {fate: harmless}, "credcheck": {fate: harmless},
	"pg_prewarm": {fate: silenced, settings: map[string]string{"pg_prewarm.autoprewarm": "off"}},
	"pg_cron":    {}, "pg_net": {}, "pg_partman_bgw": {}, "pglogical": {}, "bdr": {}, "spock": {}, "pgl_ddl_deploy": {}, "repmgr": {}, "pg_failover_slots": {},
	"timescaledb": {}, "powa": {}, "pg_squeeze": {}, "basic_archive": {}, "sepgsql": {},
	"pg_tde": {fate: manager}, "orioledb": {fate: manager}, "citus": {fate: manager}, "citus_columnar": {fate: manager}, "test_custom_rmgrs": {fate: manager},
}

// ofQuietLibrary tells whether a setting belongs to a library that may stay: its
// name begins with the library's. Without the library it has no effect.
func ofQuietLibrary(name string) bool {
	class, _, ok := strings.Cut(name, ".")
	l, isKnown := known[class]
	return ok && isKnown && (l.fate == harmless || l.fate == silenced)
}

// silence gives the settings that keep the kept libraries still.
func silence(kept map[string]bool) map[string]string {
	out := map[string]string{}
	for name := range kept {
		maps.Copy(out, known[name].settings)
	}
	return out
}
