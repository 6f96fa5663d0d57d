"""The contract: tensors (name, type, dims without batch; O optional, R reshaped to a scalar, G ragged), parameters."""

ENGINE_INPUTS = """
input_ids INT32 [-1] OG
input_lengths INT32 [1] R
request_output_len INT32 [1] R
num_return_sequences INT32 [1] OR
end_id INT32 [1] OR
pad_id INT32 [1] OR
stop_words_list INT32 [2,-1] OG
bad_words_list INT32 [2,-1] OG
embedding_bias FP32 [-1] OG
beam_width INT32 [1] OR
temperature FP32 [1] OR
runtime_top_k INT32 [1] OR
runtime_top_p FP32 [1] OR
runtime_top_p_min FP32 [1] OR
runtime_top_p_decay FP32 [1] OR
runtime_top_p_reset_ids INT32 [1] OR
len_penalty FP32 [1] OR
early_stopping INT32 [1] OR
repetition_penalty FP32 [1] OR
min_length INT32 [1] OR
min_tokens INT32 [1] OR
beam_search_diversity_rate FP32 [1] OR
presence_penalty FP32 [1] OR
frequency_penalty FP32 [1] OR
random_seed UINT64 [1] OR
seed UINT64 [1] OR
no_repeat_ngram_size INT32 [1] OR
prompt_ignore_length INT32 [1] OR
min_p FP32 [1] OR
ignore_eos BOOL [1] OR
priority FP32 [1] OR
stop_after_draft_tokens BOOL [1] OR
continued_tokens INT32 [1] OR
return_log_probs BOOL [1] OR
return_context_logits BOOL [1] OR
return_generation_logits BOOL [1] OR
return_perf_metrics BOOL [1] OR
return_kv_cache_reuse_stats BOOL [1] OR
exclude_input_in_output BOOL [1] OR
return_num_input_tokens BOOL [1] OR
return_num_output_tokens BOOL [1] OR
stop BOOL [1] OR
streaming BOOL [1] OR
draft_input_ids INT32 [-1] OG
draft_logits FP32 [-1,-1] OG
draft_acceptance_threshold FP32 [1] OR
lookahead_window_size INT32 [1] OG
lookahead_ngram_size INT32 [1] OG
lookahead_verification_set_size INT32 [1] OG
encoder_input_features FP16 [-1,-1] OG
encoder_output_lengths INT32 [1] OR
decoder_input_ids INT32 [-1] OG
decoder_input_lengths INT32 [1] OR
prompt_embedding_table FP16 [-1,-1] OG
prompt_table_extra_ids UINT64 [-1] OG
prompt_vocab_size INT32 [1] OR
cross_attention_mask BOOL [-1,-1] OG
skip_cross_attn_blocks BOOL [1] OG
mrope_rotary_cos_sin FP32 [-1] O
mrope_position_deltas INT64 [1] O
lora_task_id UINT64 [1] OR
lora_weights FP16 [-1,-1] OG
lora_config INT32 [-1,3] OG
context_phase_params UINT8 [-1] OG
retention_token_range_starts INT32 [-1] OG
retention_token_range_ends INT32 [-1] OG
retention_token_range_priorities INT32 [-1] OG
retention_token_range_durations_ms INT32 [-1] OG
retention_decode_priority INT32 [1] OG
retention_decode_duration_ms INT32 [1] OG
guided_decoding_guide_type STRING [1] OG
guided_decoding_guide STRING [1] OG
"""

ENGINE_OUTPUTS = """
output_ids INT32 [-1,-1]
sequence_length INT32 [-1]
cum_log_probs FP32 [-1]
output_log_probs FP32 [-1,-1]
context_logits FP32 [-1,-1]
generation_logits FP32 [-1,-1,-1]
batch_index INT32 [1]
sequence_index INT32 [1]
context_phase_params UINT8 [-1]
kv_cache_alloc_new_blocks INT32 [1]
kv_cache_reused_blocks INT32 [1]
kv_cache_alloc_total_blocks INT32 [1]
arrival_time_ns INT64 [1]
first_scheduled_time_ns INT64 [1]
first_token_time_ns INT64 [1]
last_token_time_ns INT64 [1]
acceptance_rate FP32 [1]
total_accepted_draft_tokens INT32 [1]
total_draft_tokens INT32 [1]
num_input_tokens INT32 [1]
num_output_tokens INT32 [1]
finish_reason STRING [1]
sequence_final BOOL [1]
prefix_ids INT32 [-1,-1]
"""

ENSEMBLE_INPUTS = """
text_input STRING [1]
decoder_text_input STRING [1] O
max_tokens INT32 [1]
bad_words STRING [-1] O
stop_words STRING [-1] O
end_id INT32 [1] O
pad_id INT32 [1] O
embedding_bias_words STRING [-1] O
embedding_bias_weights FP32 [-1] O
prompt_table_extra_id UINT64 [1] O
num_return_sequences INT32 [1] O
exclude_input_in_output BOOL [1] O
top_k INT32 [1] O
top_p FP32 [1] O
temperature FP32 [1] O
length_penalty FP32 [1] O
repetition_penalty FP32 [1] O
presence_penalty FP32 [1] O
frequency_penalty FP32 [1] O
min_length INT32 [1] O
min_tokens INT32 [1] O
random_seed UINT64 [1] O
seed UINT64 [1] O
return_log_probs BOOL [1] O
return_context_logits BOOL [1] O
return_generation_logits BOOL [1] O
return_perf_metrics BOOL [1] O
return_num_input_tokens BOOL [1] O
return_num_output_tokens BOOL [1] O
beam_width INT32 [1] O
stream BOOL [1] O
prompt_embedding_table FP16 [-1,-1] O
prompt_vocab_size INT32 [1] O
lora_task_id UINT64 [1] O
lora_weights FP16 [-1,-1] O
lora_config INT32 [-1,3] O
guided_decoding_guide_type STRING [1] O
guided_decoding_guide STRING [1] O
no_repeat_ngram_size INT32 [1] O
early_stopping INT32 [1] O
beam_search_diversity_rate FP32 [1] O
top_p_min FP32 [1] O
top_p_decay FP32 [1] O
top_p_reset_ids INT32 [1] O
prompt_ignore_length INT32 [1] O
priority FP32 [1] O
min_p FP32 [1] O
ignore_eos BOOL [1] O
"""

ENSEMBLE_OUTPUTS = """
text_output STRING [-1]
cum_log_probs FP32 [-1]
output_log_probs FP32 [-1,-1]
context_logits FP32 [-1,-1]
generation_logits FP32 [-1,-1,-1]
batch_index INT32 [1]
sequence_index INT32 [1]
kv_cache_alloc_new_blocks INT32 [1]
kv_cache_reused_blocks INT32 [1]
kv_cache_alloc_total_blocks INT32 [1]
arrival_time_ns INT64 [1]
first_scheduled_time_ns INT64 [1]
first_token_time_ns INT64 [1]
last_token_time_ns INT64 [1]
acceptance_rate FP32 [1]
total_accepted_draft_tokens INT32 [1]
total_draft_tokens INT32 [1]
num_input_tokens INT32 [1]
num_output_tokens INT32 [1]
finish_reason STRING [1]
"""

# The text model's, beyond the ensemble's.
DRAFT_INPUTS = """
num_draft_tokens INT32 [1] O
use_draft_logits BOOL [1] O
"""
TEXT_INPUTS = """
stop BOOL [1] O
"""
VISION_INPUTS = """
image_input FP16 [-1,3,-1,-1] O
image_bytes_input UINT8 [-1,-1,-1,-1] O
image_url_input STRING [1] O
video_bytes_input UINT8 [-1,-1,-1,-1] O
"""

PYTHON_TENSORS = {
    "preprocessing": (
        """
QUERY STRING [1]
REQUEST_OUTPUT_LEN INT32 [1]
BAD_WORDS_DICT STRING [-1] O
STOP_WORDS_DICT STRING [-1] O
EMBEDDING_BIAS_WORDS STRING [-1] O
EMBEDDING_BIAS_WEIGHTS FP32 [-1] O
END_ID INT32 [1] O
PAD_ID INT32 [1] O
PROMPT_TABLE_EXTRA_ID UINT64 [1] O
DECODER_QUERY STRING [1] O
IMAGE_BYTES UINT8 [-1,-1,-1,-1] O
IMAGE_URL STRING [1] O
IMAGES STRING [-1] O
VIDEO_BYTES UINT8 [-1,-1,-1,-1] O
""",
        """
INPUT_ID INT32 [-1]
REQUEST_INPUT_LEN INT32 [1]
DECODER_INPUT_ID INT32 [-1]
REQUEST_DECODER_INPUT_LEN INT32 [1]
BAD_WORDS_IDS INT32 [2,-1]
STOP_WORDS_IDS INT32 [2,-1]
EMBEDDING_BIAS FP32 [-1]
REQUEST_OUTPUT_LEN INT32 [-1]
OUT_END_ID INT32 [1]
OUT_PAD_ID INT32 [1]
OUT_PROMPT_TABLE_EXTRA_IDS UINT64 [-1]
PIXEL_VALUES FP16 [-1,-1,-1,-1]
ASPECT_RATIO_IDS INT64 [-1]
ASPECT_RATIO_MASK INT64 [-1,-1]
CROSS_ATTENTION_MASK INT64 [-1,-1,-1]
IMAGE_SIZES INT64 [-1,2]
IS_VIDEO_INPUT BOOL [1]
ATTENTION_MASK INT64 [-1]
IMAGE_GRID_THW INT64 [3]
VISION_INPUT_ID INT32 [-1]
""",
    ),
    "postprocessing": (
        """
TOKENS_BATCH INT32 [-1,-1]
SEQUENCE_LENGTH INT32 [-1]
PREFIX_IDS INT32 [-1,-1] O
SEQUENCE_FINAL BOOL [1] O
""",
        """
OUTPUT STRING [-1]
""",
    ),
}

# key, or key=template variable where they differ; FORCE_CPU_ONLY_INPUT_TENSORS and the limits of the queue are filled.
PARAMETERS = {
    "preprocessing": """
add_special_tokens
gpt_model_path=engine_dir
hf_model_path
max_num_images
multimodal_model_path
tokenizer_dir
""",
    "postprocessing": """
skip_special_tokens
tokenizer_dir
""",
    "tensorrt_llm": """
FORCE_CPU_ONLY_INPUT_TENSORS=no
batch_scheduler_policy
cancellation_check_period_ms
cross_kv_cache_fraction
cuda_graph_cache_size
cuda_graph_mode
decoding_mode
device
eagle_choices
enable_chunked_context
enable_context_fmha_fp32_acc
enable_kv_cache_reuse
enable_trt_overlap
encoder_model_path=encoder_engine_dir
exclude_input_in_output
executor_worker_path
gpt_model_path=engine_dir
gpt_model_type=batching_strategy
gpu_device_ids
gpu_weights_percent
guided_decoding_backend
iter_stats_max_iterations
kv_cache_block_size
kv_cache_cpu_memory_bytes
kv_cache_free_gpu_mem_fraction
kv_cache_host_memory_bytes
kv_cache_onboard_blocks
lookahead_ngram_size
lookahead_verification_set_size
lookahead_window_size
lora_cache_gpu_memory_fraction
lora_cache_host_memory_bytes
lora_cache_max_adapter_size
lora_cache_optimal_adapter_size
lora_prefetch_dir
max_attention_window_size
max_batch_size
max_beam_width
max_num_tokens
max_queue_delay_microseconds=0
max_queue_size=0
max_sequence_length plan_ahead batch_invariant random_weights
max_tokens_in_paged_kv_cache
medusa_choices
multi_block_mode
normalize_log_probs
num_nodes
num_threads
participant_ids
pipeline_parallel_size
random_default_seed
recv_poll_period_ms
request_stats_max_iterations
sink_token_length
speculative_decoding_fast_logits
stats_check_period_ms
tensor_parallel_size
tokenizer_dir
xgrammar_tokenizer_info_path
""",
    "tensorrt_llm_bls": """
accumulate_tokens
add_special_tokens
multimodal_encoders_name
skip_special_tokens
tensorrt_llm_draft_model_name
tensorrt_llm_model_name
tokenizer_dir
tokenizer_processes
tokenizer_python
""",
}

# The engine model's, and the tokenizer's.
PARAMETERS["inflight_text"] = (
    PARAMETERS["tensorrt_llm"]
    + "accumulate_tokens\nadd_special_tokens\nskip_special_tokens\ntensorrt_llm_draft_model_name\n"
    + "tensorrt_llm_model_name\ntokenizer_processes\ntokenizer_python\n"
)

LLMAPI_INPUTS = """
text_input STRING [-1]
image_url STRING [-1] O
streaming BOOL [1] O
stop BOOL [1] O
sampling_param_best_of INT32 [1] O
sampling_param_temperature FP32 [1] O
sampling_param_top_k INT32 [1] O
sampling_param_top_p FP32 [1] O
sampling_param_frequency_penalty FP32 [1] O
sampling_param_presence_penalty FP32 [1] O
sampling_param_max_tokens INT32 [1] O
sampling_param_stop STRING [-1] O
sampling_param_seed UINT64 [1] O
sampling_param_exclude_input_from_output BOOL [1] O
sampling_param_return_perf_metrics BOOL [1] O
sampling_param_logits_post_processor_name STRING [1] O
return_finish_reason BOOL [1] O
return_stop_reason BOOL [1] O
return_cumulative_logprob BOOL [1] O
lora_id UINT64 [1] O
lora_name STRING [1] O
lora_path STRING [1] O
lora_ckpt_source STRING [1] O
"""

LLMAPI_OUTPUTS = """
text_output STRING [-1]
finish_reason STRING [-1]
stop_reason STRING [-1]
cumulative_logprob FP32 [-1]
kv_cache_reused_block INT32 [-1]
kv_cache_missed_block INT32 [-1]
kv_cache_alloc_new_blocks INT32 [-1]
kv_cache_alloc_total_blocks INT32 [-1]
kv_cache_hit_rate FP32 [-1]
arrival_time_ns INT64 [1]
first_scheduled_time_ns INT64 [1]
first_token_time_ns INT64 [1]
last_token_time_ns INT64 [1]
acceptance_rate FP32 [1]
total_accepted_draft_tokens INT32 [1]
total_draft_tokens INT32 [1]
"""
