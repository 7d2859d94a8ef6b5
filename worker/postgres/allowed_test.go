package postgres

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
	"catalog-backup/worker/postgres/pgconf"
)

// lookedAt are settings of PostgreSQL 10 to 18 that are not taken over, so that a
// setting in neither list is one that nobody has thought of.
var lookedAt = settingsOf(
	// They lead to places, commands, code or other hosts, or act for the original.
	`archive_cleanup_command archive_command archive_library archive_mode archive_timeout bonjour bonjour_name config_file data_directory dynamic_library_path
	event_source extension_control_path extension_destdir external_pid_file hba_file ident_file jit_provider krb_caseins_users krb_server_keyfile listen_addresses
	local_preload_libraries log_destination log_directory log_file_mode log_filename log_rotation_age log_rotation_size log_truncate_on_rotation logging_collector
	log_hostname md5_password_warnings oauth_validator_libraries output_plugin_libraries port primary_conninfo primary_slot_name promote_trigger_file recovery_end_command restore_command
	session_preload_libraries shared_preload_libraries ssl ssl_ca_file ssl_cert_file ssl_ciphers ssl_crl_dir ssl_crl_file ssl_dh_params_file ssl_ecdh_curve ssl_groups
	ssl_key_file ssl_max_protocol_version ssl_min_protocol_version ssl_passphrase_command ssl_passphrase_command_supports_reload ssl_prefer_server_ciphers
	ssl_tls13_ciphers stats_temp_directory syslog_facility syslog_ident syslog_sequence_numbers syslog_split_messages unix_socket_directories unix_socket_group
	unix_socket_permissions gss_accept_delegation tcp_keepalives_count tcp_keepalives_idle tcp_keepalives_interval tcp_user_timeout client_connection_check_interval`,
	// Replication and recovery.
	`hot_standby hot_standby_feedback idle_replication_slot_timeout max_active_replication_origins max_logical_replication_workers max_slot_wal_keep_size
	max_parallel_apply_workers_per_subscription max_standby_archive_delay max_standby_streaming_delay max_sync_workers_per_subscription
	logical_replication_mode debug_logical_replication_streaming recovery_init_sync_method recovery_min_apply_delay recovery_prefetch recovery_target
	recovery_target_action recovery_target_inclusive recovery_target_lsn recovery_target_name recovery_target_time recovery_target_timeline recovery_target_xid
	replication_sleep summarize_wal sync_replication_slots synchronized_standby_slots synchronous_standby_names vacuum_defer_cleanup_age wal_decode_buffer_size
	wal_keep_segments wal_keep_size wal_level wal_receiver_create_temp_slot wal_receiver_status_interval wal_receiver_timeout wal_retrieve_retry_interval
	wal_sender_timeout wal_summary_keep_time wal_buffers`,
	// They make the data less safe, or a person's work on it strange.
	`allow_alter_system allow_in_place_tablespaces allow_system_table_mods data_sync_retry default_transaction_read_only event_triggers fsync full_page_writes
	ignore_checksum_failure ignore_invalid_pages ignore_system_indexes restrict_nonsystem_relation_kind session_replication_role transaction_deferrable
	transaction_isolation transaction_read_only zero_damaged_pages old_snapshot_threshold db_user_namespace exit_on_error remove_temp_files_after_crash restart_after_crash
	application_name superuser_reserved_connections reserved_connections wal_consistency_checking wal_sync_method send_abort_for_crash send_abort_for_kill`,
	// They depend on the host.
	`dynamic_shared_memory_type huge_page_size huge_pages io_max_combine_limit io_max_concurrency io_method io_workers max_files_per_process max_stack_depth
	max_notify_queue_pages min_dynamic_shared_memory shared_memory_type commit_timestamp_buffers multixact_member_buffers multixact_offset_buffers notify_buffers
	serializable_buffers subtransaction_buffers transaction_buffers autovacuum_worker_slots file_copy_method file_extend_method debug_io_direct`,
	// For developers.
	`backtrace_functions debug_copy_parse_plan_trees debug_discard_caches debug_parallel_query debug_pretty_print debug_print_parse debug_print_plan
	debug_print_rewritten debug_raw_expression_coverage_test debug_write_read_parse_plan_trees force_parallel_mode jit_debugging_support jit_dump_bitcode
	jit_profiling_support log_executor_stats log_parser_stats log_planner_stats log_statement_stats post_auth_delay pre_auth_delay trace_connection_negotiation
	trace_notify trace_recovery_messages trace_sort`,
)

// TestEverySettingWasLookedAt fails with a server that has a setting which is in
// neither list; such a one is not taken over until somebody has decided.
func TestEverySettingWasLookedAt(t *testing.T) {
	p := lab.Postgres(t)
	for _, name := range strings.Fields(p.Psql("select string_agg(lower(name), ' ') from pg_settings where context <> 'internal' and name !~ '\\.'")) {
		require.NotEqual(t, allowed[name], lookedAt[name], "%s must be in one of the lists", name)
	}
	for name := range never {
		require.False(t, allowed[name], name)
	}
}

// TestLinksAreCut: pgBackRest makes no link but those of tablespaces; one that is
// there all the same leads the server out.
func TestLinksAreCut(t *testing.T) {
	target := place(t)
	r := &restoration{o: RestoreOptions{Target: target}, done: &Restored{DataDir: target + "/data"}, manifest: &manifest{tablespaces: map[string]string{"16384": "/x", "16385": "/y"}}}
	for _, dir := range []string{"data/base/5", "data/pg_tblspc", "tablespaces/16384/PG_15", "tablespaces/16385"} {
		require.NoError(t, os.MkdirAll(filepath.Join(target, dir), 0o700))
	}
	cut := map[string]string{"data/log": "/var/log", "data/postgresql.conf": "../x", "data/base/5/1": "../6/1", "data/pg_wal": "/wal", "data/pg_tblspc/16385": "/y", "data/pg_tblspc/16386": target + "/tablespaces/16384", "tablespaces/16384/PG_15/1": "/z"}
	for name, to := range cut {
		require.NoError(t, os.Symlink(to, filepath.Join(target, name)))
	}
	require.NoError(t, os.Symlink(target+"/tablespaces/16384", target+"/data/pg_tblspc/16384"))
	require.NoError(t, r.cutLinks())
	for name := range cut {
		_, err := os.Lstat(filepath.Join(target, name))
		require.ErrorIs(t, err, os.ErrNotExist, name)
	}
	_, err := os.Lstat(target + "/data/pg_tblspc/16384")
	require.NoError(t, err)
	require.Len(t, r.done.Notes, len(cut))
}

// TestLibraries: which stay, by what is known of them and what the WAL needs.
func TestLibraries(t *testing.T) {
	lib := place(t)
	for _, name := range []string{"auto_explain", "pg_prewarm", "pgaudit", "some_manager"} {
		require.NoError(t, os.MkdirAll(lib+"/lib", 0o755))
		require.NoError(t, os.WriteFile(lib+"/lib/"+name+".so", nil, 0o644))
	}
	list := `auto_explain, "pg_prewarm" ,$libdir/pgaudit.so, pg_stat_statements, pg_cron, some_manager, $libdir/../x, /lib/y, "a,b", pg_tde`
	for _, c := range []struct {
		needed []int
		kept   string
		warns  int
	}{{nil, "auto_explain pg_prewarm pgaudit", 0}, {[]int{128}, "auto_explain pg_prewarm pgaudit some_manager a b pg_tde", 4}} {
		r := &restoration{bin: lib + "/bin", done: &Restored{}, values: map[string]string{"shared_preload_libraries": list}, o: RestoreOptions{Part: &set.Postgres{}}}
		r.history = &walHistory{}
		for _, id := range c.needed {
			r.history.managers[id] = true
		}
		r.chooseLibraries()
		require.Equal(t, c.kept, strings.Join(r.libraries["shared_preload_libraries"], " "))
		require.Len(t, r.done.Warnings, c.warns)
		notes := strings.Join(r.done.Notes, "\n")
		for _, name := range []string{"pg_stat_statements is not installed", "pg_cron was left out", `"../x" is no plain name`, `"/lib/y"`} {
			require.Contains(t, notes, name)
		}
	}
}

func TestMemoryOf(t *testing.T) {
	for value, want := range map[string]int64{"128MB": 128 << 20, "16384": 128 << 20, " 2 TB ": 2 << 40, "1.5GB": 3 << 29, "0x10": 16 * 8192, "10B": 10, "99999999999TB": 1<<63 - 1} {
		n, ok := memoryOf(value)
		require.True(t, ok, value)
		require.Equal(t, want, n, value)
	}
	_, ok := memoryOf("12 parsecs")
	require.False(t, ok)
}

func FuzzRewrite(f *testing.F) {
	f.Add("ssl\r=\ron\nwork_mem = 1MB\ninclude 'a.conf'\nlisten_addresses = '*'")
	f.Add("shared_preload_libraries = 'x\n''\n\x00\nport 1")
	f.Fuzz(func(t *testing.T, text string) {
		data := t.TempDir()
		r := &restoration{done: &Restored{DataDir: data}, values: map[string]string{}, refused: map[string]bool{}, retiredIn: map[string][]string{}}
		if err := os.WriteFile(data+"/postgresql.conf", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := r.rewriteConfig(); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(data + "/postgresql.conf")
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range pgconf.Lines(string(content)) {
			if l := pgconf.Parse(line); l.Kind == pgconf.Invalid || l.Kind == pgconf.Setting && !allowed[l.Name] && !ofQuietLibrary(l.Name) {
				t.Fatalf("%q stayed", line)
			}
		}
	})
}
