//! What methods that end in one plain decoder share: loading it, wrapping a text in its chat template, answering.

pub(crate) use crate::draft::{Draft, Finishing, Prepared};

use crate::draft::Ahead;
use crate::options::bad_option;
use crate::trained::placement;
use e2llm_backend::{
    Backend, BackendError, BackendInfo, BuildContext, CancelFlag, Choice, ErrorKind, Fingerprint, OptionSpec,
    Prompt, Request, Response, TokenCounter,
};
use e2llm_lm::Prepared as Ready;
use e2llm_lm::{
    DecoderFiles, DecoderModel, Desk, Generation, KvCache, Llama, LlamaConfig, Memory, Message, PeftAdapter,
    Precision, Stretch, Tokenizer, TunedDecoder, answer_queue, continuation_ids, generate_with, prompt_len,
    queue_of, score_continuations_with, token_counter,
};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The option every decoder method has.
pub(crate) const WINDOW: OptionSpec = OptionSpec {
    name: "window",
    default: "",
    help: "positions the decoder may use; default: the model's own",
};

/// The option that makes a trained baseline of a method.
pub(crate) const LORA: OptionSpec = OptionSpec {
    name: "lora",
    default: "",
    help: "folder of a LoRA adapter of the decoder, in PEFT's layout",
};

/// What a method does to a request and to the decoder.
pub(crate) trait Method: Send + Sync {
    /// Changes the decoder's configuration before it is loaded, and returns what a reader of a result must know.
    fn configure(&mut self, _config: &mut LlamaConfig) -> Result<Vec<String>, BackendError> {
        Ok(Vec::new())
    }

    /// Adds what it trained to the loaded decoder, and returns what a reader of a result must know.
    fn attach(&mut self, _llama: &mut Llama, _precision: Precision) -> Result<Vec<String>, BackendError> {
        Ok(Vec::new())
    }

    /// Adds files of its own that decide an answer.
    fn hash(&self, _hash: &mut Fingerprint) -> Result<(), BackendError> {
        Ok(())
    }

    /// Parameters it has beside the decoder's.
    fn parameters(&self) -> u64 {
        0
    }

    /// How many of them were trained for it.
    fn trained_parameters(&self) -> u64 {
        0
    }

    /// What a prompt's text alone makes of it, without a model's work, with `room` positions of the window left for the answer.
    /// Other threads do that, while the prompts ahead of it are answered.
    fn draft<'a>(
        &'a self,
        decoder: &'a Decoder,
        prompt: &'a Prompt,
        room: usize,
    ) -> Result<Draft<'a>, BackendError>;

    /// The whole prompt.
    fn prepare(&self, decoder: &Decoder, prompt: &Prompt, room: usize) -> Result<Prepared, BackendError> {
        self.draft(decoder, prompt, room)?.finish()
    }

    /// Whether the decoder remembers in a way of the method's own. Requests are answered one after another then, and
    /// side by side where not.
    fn remembers(&self) -> bool {
        false
    }

    /// What the decoder remembers with, for a prompt of `_prompt` positions, `expected` with its answer.
    fn memory(&self, _decoder: &Decoder, _prompt: usize, expected: usize) -> Box<dyn Memory> {
        Box::new(KvCache::new(expected))
    }
}

/// A loaded decoder.
pub(crate) struct Decoder {
    pub(crate) model: DecoderModel,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) window: usize,
    pub(crate) cancel: CancelFlag,
}

impl Decoder {
    /// Ids of a message as the decoder gets it: in its chat template where the prompt wants that and the model has
    /// one, else as raw text with special tokens; behind it the beginning of the answer.
    pub(crate) fn wrap(&self, message: &str, prompt: &Prompt) -> Result<Vec<u32>, BackendError> {
        let (text, add_special) = self.text(message, prompt)?;
        Ok(self.tokenizer.encode(&text, add_special)?)
    }

    /// The text of [`Decoder::wrap`], and whether special tokens belong around it.
    pub(crate) fn text(&self, message: &str, prompt: &Prompt) -> Result<(String, bool), BackendError> {
        let template = self.tokenizer.chat().filter(|_| prompt.chat);
        let mut text = match template {
            Some(template) => template.render(&[Message::new("user", message)], true)?,
            None => message.to_owned(),
        };
        text.push_str(&prompt.answer_prefix);
        Ok((text, template.is_none()))
    }

    /// Positions that go to everything but the message and its own special tokens.
    pub(crate) fn overhead(&self, prompt: &Prompt) -> Result<usize, BackendError> {
        if prompt.chat && self.tokenizer.chat().is_some() {
            return Ok(self.wrap("", prompt)?.len());
        }
        Ok(self.tokenizer.encode(&prompt.answer_prefix, false)?.len())
    }

    /// The error of a prompt that does not fit.
    pub(crate) fn too_long(&self, what: &str, prompt: usize, room: usize) -> BackendError {
        let window = self.window;
        let message = format!(
            "{what}: {prompt} tokens of prompt and {room} of answer, the decoder's window is {window}"
        );
        BackendError::new(ErrorKind::ContextTooLong, message)
    }
}

/// A [`Method`] in front of a decoder.
pub(crate) struct DecoderBackend<M> {
    info: BackendInfo,
    decoder: Decoder,
    method: M,
}

impl<M: Method> DecoderBackend<M> {
    /// Loads the decoder of `context`. `truncation` is what the method does to a context that does not fit.
    pub(crate) fn new(
        name: &str,
        truncation: &str,
        mut method: M,
        context: &BuildContext,
    ) -> Result<Self, BackendError> {
        let Some(path) = &context.model.decoder else {
            let message =
                format!("backend `{name}` needs a decoder, and model `{}` has none", context.model.name);
            return Err(BackendError::new(ErrorKind::BadRequest, message));
        };
        let (device, precision) = placement(context)?;
        let mut files = DecoderFiles::open(path)?;
        let mut hash = Fingerprint::new(name, env!("CARGO_PKG_VERSION"));
        hash.text("dtype", &precision.to_string());
        for (option, value) in context.options.iter() {
            hash.text(option, value);
        }
        for file in &files.files {
            let file_name = file.file_name().unwrap_or_default().to_string_lossy();
            hash.file(&file_name, file).map_err(|e| BackendError::failed(&e))?;
        }
        method.hash(&mut hash)?;
        let base = files.config.parameters();
        let trained = files.config.max_position_embeddings;
        let (adapter, rope) = trained_parts(context, &mut hash)?;
        let mut warnings = match rope {
            Some(rope) => rope.apply(&mut files.config).map_err(|e| BackendError::failed(&e))?,
            None => Vec::new(),
        };
        warnings.extend(files.weights.warning());
        warnings.extend(method.configure(&mut files.config)?);
        let positions = files.config.max_position_embeddings;
        let adapted: u64 =
            adapter.iter().flat_map(|a| a.tensors.values()).map(|t| t.elem_count() as u64).sum();
        let mut model = DecoderModel::with_adapter(files, adapter, &device, precision)?;
        warnings.extend(method.attach(&mut model.llama, precision)?);
        if model.tokenizer.chat().is_none() {
            warnings.push("the decoder has no chat template: prompts are raw text".to_owned());
        }
        // A method that stretched the positions knows better than the catalogue.
        let known = context.model.window.filter(|_| positions == trained);
        let own = known.map_or(positions, |w| w as usize).min(positions);
        let window = context.options.parse("window")?.unwrap_or(own);
        if window > positions {
            warnings.push(format!("window {window}: the decoder was trained on {positions} positions only"));
        }
        hash.text("window", &window.to_string());
        let info = BackendInfo {
            name: name.into(),
            model: context.model.name.clone(),
            parameters: base + method.parameters(),
            trained_parameters: adapted + method.trained_parameters(),
            window: Some(window as u64),
            dtype: precision.to_string(),
            device: context.device.to_string(),
            truncation: truncation.into(),
            fingerprint: hash.finish(),
            chat_template: model.tokenizer.chat().map(|t| t.hash()),
            warnings,
        };
        let tokenizer = Arc::new(model.tokenizer.clone());
        let decoder = Decoder { model, tokenizer, window, cancel: context.cancel.clone() };
        Ok(Self { info, decoder, method })
    }

    /// Positions the decoder may use.
    pub(crate) fn window(&self) -> usize {
        self.decoder.window
    }

    fn draft<'a>(&'a self, request: &'a Request) -> Result<(Draft<'a>, Duration), BackendError> {
        let start = Instant::now();
        self.decoder.cancel.check()?;
        let draft = self.method.draft(&self.decoder, &request.prompt, request.generation.max_new_tokens)?;
        Ok((draft, start.elapsed()))
    }

    /// Answers one request through the method's own memory.
    fn answer(
        &self,
        request: &Request,
        (ready, finish): (Ready, Option<Finishing>),
    ) -> Result<Response, BackendError> {
        let decoder = &self.decoder;
        let prompt = prompt_len(&ready.segments);
        let expected = prompt + request.generation.max_new_tokens;
        let mut memory = self.method.memory(decoder, prompt, expected);
        let generated = generate_with(
            &mut *memory,
            &decoder.model.llama,
            Some(&decoder.tokenizer),
            &decoder.model.eos_ids,
            &ready.segments,
            &Generation::of(request),
            &|| decoder.cancel.is_cancelled(),
        )?;
        finished(generated.into_response(ready.usage, ready.time), finish)
    }
}

fn finished(mut response: Response, finish: Option<Finishing>) -> Result<Response, BackendError> {
    if let Some(finish) = finish {
        response.text = finish(&response.text)?;
    }
    Ok(response)
}

/// What was trained of the decoder: the model's own folder, or the adapter asked for. Its files are hashed.
fn trained_parts(
    context: &BuildContext,
    hash: &mut Fingerprint,
) -> Result<(Option<PeftAdapter>, Option<Stretch>), BackendError> {
    let lora = Path::new(context.options.text("lora"));
    let asked = !lora.as_os_str().is_empty();
    let mut add = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        hash.file(&name, path).map(drop).map_err(|e| BackendError::failed(&e))
    };
    if let Some(folder) = context.model.checkpoint.as_deref().filter(|f| TunedDecoder::is_at(f)) {
        if asked {
            let what = format!("{} has trained weights of its own", folder.display());
            return Err(bad_option("lora", &what));
        }
        let tuned = TunedDecoder::read(folder)?;
        TunedDecoder::files(folder).iter().try_for_each(|path| add(path))?;
        return Ok((Some(tuned.adapter), tuned.rope));
    }
    if !asked {
        return Ok((None, None));
    }
    if !lora.is_dir() {
        return Err(bad_option("lora", &format!("no folder {}", lora.display())));
    }
    if TunedDecoder::is_at(lora) && TunedDecoder::settings(lora)?.1.is_some() {
        let what = format!("{} was trained in a stretched window: give it as --model", lora.display());
        return Err(bad_option("lora", &what));
    }
    let adapter = PeftAdapter::read(lora)?;
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        add(&lora.join(name))?;
    }
    Ok((Some(adapter), None))
}

impl<M: Method> Backend for DecoderBackend<M> {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn generate(&mut self, batch: &[Request]) -> Vec<Result<Response, BackendError>> {
        self.generate_queue(batch, batch.len())
    }

    fn generate_queue(&mut self, queue: &[Request], at_once: usize) -> Vec<Result<Response, BackendError>> {
        let own = &*self;
        let drafts = Ahead::new(queue.len(), |i| own.draft(&queue[i]));
        let prepare = |i: usize| {
            let (draft, time) = drafts.take(i)?;
            let start = Instant::now();
            let Prepared { segments, usage, finish } = draft.finish()?;
            Ok::<_, BackendError>((Ready { segments, usage, time: time + start.elapsed() }, finish))
        };
        rayon::in_place_scope(|scope| {
            for i in (0..queue.len()).filter(|_| queue.len() > 1) {
                let drafts = &drafts;
                scope.spawn(move |_| drafts.make(i));
            }
            if own.method.remembers() {
                let answer = |(i, request)| own.answer(request, prepare(i)?);
                return queue.iter().enumerate().map(answer).collect();
            }
            let Decoder { model, tokenizer, cancel, .. } = &own.decoder;
            let cancelled = || cancel.is_cancelled();
            let desk = Desk {
                llama: &model.llama,
                tokenizer: Some(tokenizer),
                eos_ids: &model.eos_ids,
                cancelled: &cancelled,
            };
            let mut finishes: Vec<Option<Finishing>> = vec![None; queue.len()];
            let answers = answer_queue(desk, queue, at_once, &mut |i| {
                let (ready, finish) = prepare(i)?;
                finishes[i] = finish;
                Ok(ready)
            });
            answers.into_iter().zip(finishes).map(|(answer, finish)| finished(answer?, finish)).collect()
        })
    }

    fn queue(&self, at_once: usize) -> usize {
        if self.method.remembers() { at_once } else { queue_of(at_once, self.decoder.model.llama.device()) }
    }

    fn choose(&mut self, request: &Request, choices: &[String]) -> Result<Choice, BackendError> {
        let start = Instant::now();
        self.decoder.cancel.check()?;
        let continuations = continuation_ids(&self.decoder.tokenizer, choices)?;
        let room = continuations.iter().map(Vec::len).max().unwrap_or(0);
        let Prepared { segments, mut usage, .. } =
            self.method.prepare(&self.decoder, &request.prompt, room)?;
        let decoder = &self.decoder;
        let prompt = prompt_len(&segments);
        let mut memory = self.method.memory(decoder, prompt, prompt + room);
        let scores =
            score_continuations_with(&mut *memory, &decoder.model.llama, &segments, &continuations, &|| {
                decoder.cancel.is_cancelled()
            })?;
        usage.time_to_first_token = start.elapsed().as_secs_f64();
        Ok(Choice { log_likelihoods: scores, tokens: continuations.iter().map(Vec::len).collect(), usage })
    }

    fn token_counter(&self) -> Option<TokenCounter> {
        Some(token_counter(&self.decoder.tokenizer))
    }
}
