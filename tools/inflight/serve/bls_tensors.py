"""Which tensor of the scripted chain goes where: the same wiring as the ensemble's config.pbtxt."""

# Chain input -> preprocessing input.
PREPROCESSING_INPUTS = {
    "text_input": "QUERY",
    "decoder_text_input": "DECODER_QUERY",
    "max_tokens": "REQUEST_OUTPUT_LEN",
    "bad_words": "BAD_WORDS_DICT",
    "stop_words": "STOP_WORDS_DICT",
    "end_id": "END_ID",
    "pad_id": "PAD_ID",
    "embedding_bias_words": "EMBEDDING_BIAS_WORDS",
    "embedding_bias_weights": "EMBEDDING_BIAS_WEIGHTS",
    "prompt_table_extra_id": "PROMPT_TABLE_EXTRA_ID",
}

# Preprocessing output -> engine input.
PREPROCESSING_OUTPUTS = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "DECODER_INPUT_ID": "decoder_input_ids",
    "REQUEST_DECODER_INPUT_LEN": "decoder_input_lengths",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "STOP_WORDS_IDS": "stop_words_list",
    "BAD_WORDS_IDS": "bad_words_list",
    "EMBEDDING_BIAS": "embedding_bias",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
    "OUT_PROMPT_TABLE_EXTRA_IDS": "prompt_table_extra_ids",
}

# Chain input -> engine input.
ENGINE_INPUTS = {
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "length_penalty": "len_penalty",
    "top_p_min": "runtime_top_p_min",
    "top_p_decay": "runtime_top_p_decay",
    "top_p_reset_ids": "runtime_top_p_reset_ids",
    "stream": "streaming",
    **{
        name: name
        for name in (
            "num_return_sequences",
            "exclude_input_in_output",
            "temperature",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "min_length",
            "min_tokens",
            "random_seed",
            "seed",
            "return_log_probs",
            "return_context_logits",
            "return_generation_logits",
            "return_perf_metrics",
            "return_num_input_tokens",
            "return_num_output_tokens",
            "beam_width",
            "prompt_embedding_table",
            "prompt_vocab_size",
            "lora_task_id",
            "lora_weights",
            "lora_config",
            "guided_decoding_guide_type",
            "guided_decoding_guide",
            "no_repeat_ngram_size",
            "early_stopping",
            "beam_search_diversity_rate",
            "prompt_ignore_length",
            "priority",
            "min_p",
            "ignore_eos",
        )
    },
}

# Engine output -> postprocessing input.
CHUNK_OUTPUTS = {
    "output_ids": "TOKENS_BATCH",
    "sequence_length": "SEQUENCE_LENGTH",
    "prefix_ids": "PREFIX_IDS",
    "sequence_final": "SEQUENCE_FINAL",
}

# Engine outputs that the chain gives on under the same name.
ENGINE_OUTPUTS = (
    "cum_log_probs",
    "output_log_probs",
    "context_logits",
    "generation_logits",
    "batch_index",
    "sequence_index",
    "kv_cache_alloc_new_blocks",
    "kv_cache_reused_blocks",
    "kv_cache_alloc_total_blocks",
    "arrival_time_ns",
    "first_scheduled_time_ns",
    "first_token_time_ns",
    "last_token_time_ns",
    "acceptance_rate",
    "total_accepted_draft_tokens",
    "total_draft_tokens",
    "num_input_tokens",
    "num_output_tokens",
    "finish_reason",
)

# Chain inputs of features that are not there, and what they belong to.
UNSUPPORTED = {
    "image_input": "multimodal networks",
    "image_bytes_input": "multimodal networks",
    "image_url_input": "multimodal networks",
    "video_bytes_input": "multimodal networks",
}
