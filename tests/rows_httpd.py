"""Rows of the specification's table of the web monitor -> the tests that prove them, as in rows_dispycos.py.

A test checks that these exist and that no row of the table is missing.
"""
from __future__ import annotations

_V, _S, _C = "test_httpd_view.", "test_httpd_server.", "test_httpd_cluster."

ROWS = {
    "W01": _C + "ChainTest.test_monitor_first_then_the_programs_own_task " + _S
    + "OptionsTest.test_old_names_of_options " + _C
    + "ChainTest.test_monitor_that_comes_late " + _S + "OptionsTest.test_this_machine_only_unless_told",
    "W02": _C + "ChainTest.test_messages_relayed_by_hand " + _S + "OptionsTest.test_oldest_form",
    "W03": _S + "OptionsTest.test_shutdown_waits_for_browsers_that_have_looked " + _S
    + "OptionsTest.test_shutdown_in_a_task_does_not_wait " + _C + "ProgramTest.test_old_program",
    "W04": _S + "AnswerTest.test_document_root " + _S + "AnswerTest.test_document_roots_that_cannot_be",
    "W05 W06 W07": _S + "AnswerTest.test_built_in_pages",
    "W08": _S + "AnswerTest.test_document_root " + _S + "AnswerTest.test_page_that_the_browser_has",
    "W09": _V + "ViewTest.test_documented_record_of_a_node " + _C + "WatchTest.test_documented_views_of_a_run",
    "W10 V21": _V + "ChangesTest.test_every_reader_gets_every_change " + _S
    + "ViewersTest.test_every_viewer_sees_every_change " + _S + "ViewersTest.test_each_browser_is_a_reader " + _C
    + "WatchTest.test_all_viewers_see_all",
    "W11": _C + "WatchTest.test_documented_views_of_a_run",
    "W12": _C + "WatchTest.test_documented_views_of_a_run " + _C + "WatchTest.test_limit_of_tasks_shown " + _C
    + "WatchTest.test_arguments_are_hidden_when_asked_for " + _V + "TextTest.test_texts_are_those_of_str",
    "W13": _C + "ActTest.test_terminate_tasks",
    "W14": _S + "AnswerTest.test_document_root " + _S + "ViewersTest.test_arguments_hidden_for_all " + _S
    + "AnswerTest.test_update",
    "W15 W16": _C + "ActTest.test_suspend_and_resume_a_node " + _C + "ActTest.test_program_that_is_busy " + _S
    + "ActTest.test_nodes_at_one_address",
    "W17 W18": _C + "ActTest.test_suspend_and_resume_servers",
    "W19": _S + "SpellingTest.test_paths_that_lead_nowhere",
    "W20 W21 W22": _S + "AnswerTest.test_built_in_pages " + _C
    + "WatchTest.test_plain_functions_are_counted_and_listed_when_they_fail",
    "W23": _V + "ViewTest.test_words_of_nodes_and_servers " + _C + "WatchTest.test_words_of_a_life",
    "W24": _S + "TlsTest.test_one_file_and_two",
    "W25": _V + "ViewTest.test_counts_survive_the_end_of_a_computation " + _C + "WatchTest.test_words_of_a_life " + _C
    + "WatchTest.test_plain_functions_are_counted_and_listed_when_they_fail",
    "W26": _S + "SpellingTest.test_paths_that_lead_nowhere " + _S + "AnswerTest.test_names_are_text " + _S
    + "AnswerTest.test_headers_of_every_answer",
    # 2 and 17: choices, and defects of old that must not come back
    "X36": _S + "OptionsTest.test_oldest_form",
    "X37": _C + "ActTest.test_terminate_tasks " + _S + "OptionsTest.test_old_names_of_options",
    "D10": _C + "ActTest.test_suspend_and_resume_a_node",
    "D14": _S + "TlsTest.test_one_file_and_two",
    "D22": _S + "SpellingTest.test_paths_that_lead_nowhere",
    # 20 examples
    "dispycos_client1": "test_upstream_examples.ClusterTest.test_dispycos_client1",
    "dispycos_httpd1": "test_upstream_examples.ClusterTest.test_dispycos_httpd1",
    "dispycos_httpd2": "test_upstream_examples.ClusterTest.test_dispycos_httpd2",
}
"""Row ids (several share an entry) -> names of tests below `tests`, with blanks between."""
