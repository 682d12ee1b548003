"""The papers that sinkscope's definitions, probes and edits come from, as plain values and as BibTeX.

Only facts that were established are here: an entry whose full author list is not known says ``others``, and a field
that is not known is left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """One paper: BibTeX key, title, authors joined by ``and``, year, arXiv id and a note (empty where not known)."""

    key: str
    title: str = ""
    authors: str = ""
    year: int = 0
    arxiv: str = ""
    note: str = ""

    def bibtex(self) -> str:
        """Return the BibTeX entry."""
        fields = {
            "title": "{" + self.title + "}" if self.title else "",
            "author": self.authors,
            "year": str(self.year) if self.year else "",
            "eprint": self.arxiv,
            "archiveprefix": "arXiv" if self.arxiv else "",
            "note": self.note,
        }
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
        return "\n".join([f"@misc{{{self.key},", *lines, "}"])


_ENTRIES: tuple[Reference, ...] = (
    Reference(
        "gu2025", "When Attention Sink Emerges in Language Models: An Empirical View", "Gu and others", 2025,
        "2410.10781", "ICLR 2025",
    ),
    Reference(
        "sun2024", "Massive Activations in Large Language Models", "Sun and Chen and Kolter and Liu", 2024,
        "2402.17762", "COLM 2024",
    ),
    Reference(
        "guo2024",
        "Active-Dormant Attention Heads: Mechanistically Demystifying Extreme-Token Phenomena in LLMs",
        "Guo and others", 2024, "2410.13835",
    ),
    Reference(
        "han2025", "ZeroTuning: Unlocking the Initial Token's Power to Enhance LLMs Without Training",
        "Han and others", 2025, "2505.11739", "ICLR 2026",
    ),
    Reference(
        "kan2025",
        "RAR: Reversing Visual Attention Re-Sinking for Unlocking Potential in Multimodal Large Language Models",
        "Kan and Li and Liu and Yang and Jiang and Liu and Jiang and Sun and Liao and Yang",
        note="ICLR 2026, OpenReview xTbFeDhdRG",
    ),
    Reference(
        "kang2025", "See What You Are Told: Visual Attention Sink in Large Multimodal Models",
        "Kang and Kim and Kim and Hwang", 2025, "2503.03321", "ICLR 2025",
    ),
    Reference(
        "wong2025", "On the Existence and Behaviour of Secondary Attention Sinks", "Wong and others", 2025, "2512.22213"
    ),
    Reference(
        "yu2024",
        "Unveiling and Harnessing Hidden Attention Sinks: "
        "Enhancing LLMs without Training through Attention Calibration",
        "Yu and others", 2024, "2406.15765", "ICML 2024",
    ),
    Reference(
        "zhang2023", "Tell Your Model Where to Attend: Post-hoc Attention Steering for LLMs", "Zhang and others",
        2023, "2311.02262", "ICLR 2024",
    ),
    Reference("autopasta", arxiv="2409.10790", note="AutoPASTA"),
    Reference(
        "qiu2025", "Gated Attention for LLMs: Non-linearity, Sparsity, and Attention-Sink-Free", "Qiu and others", 2025,
        "2505.06708", "NeurIPS 2025",
    ),
    Reference(
        "darcet2024", "Vision Transformers Need Registers", "Darcet and Oquab and Mairal and Bojanowski", 2024,
        "2309.16588", "ICLR 2024",
    ),
    Reference(
        "jiang2025", "Vision Transformers Don't Need Trained Registers", "Jiang and Dravid and Efros and Gandelsman",
        2025, "2506.08010", "NeurIPS 2025",
    ),
    Reference(
        "he2025",
        "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence",
        "He and Zhu and Guo and Fang and Hua and Jia and Tang and Chua and Wang", 2025, "2412.13949", "ACL 2025",
    ),
    Reference(
        "zhao2025", "Attention Debiasing for Token Pruning in Vision-Language Models",
        "Zhao and Yuan and Lin and Ruan and Lu and Fan and Cheng and Zeng", 2025, "2508.17807",
    ),
    Reference(
        "text_dominance2025",
        "When Language Overrules: Revealing Text Dominance in Multimodal Large Language Models",
        year=2025, arxiv="2508.10552",
    ),
    Reference(
        "anand2026",
        "Mitigating Attention Sinks and Massive Activations in Audio-Visual Speech Recognition with LLMs",
        "Anand and Cappellazzo and Petridis and others", 2026, "2510.22603", "ICASSP 2026",
    ),
    Reference(
        "ge2025", "Focusing by Contrastive Attention: Enhancing VLMs' Visual Reasoning",
        "Ge and Liu and Wang and Mei and Bi and Zhou and Yao and Guo and Cheng", 2025, "2509.06461",
    ),
    Reference(
        "gift2026",
        "Capturing Gaze Shifts for Guidance: Cross-Modal Fusion Enhancement for VLM Hallucination Mitigation",
        year=2026, arxiv="2510.22067", note="ICML 2026",
    ),
    Reference(
        "zhang2026", "Hallucination Begins Where Saliency Drops",
        "Zhang and Zhu and Gu and Yuan and Zhao and Cao and Tang and Fan and Shen and Shen and Tang", 2026,
        "2601.20279", "ICLR 2026",
    ),
    Reference(
        "zhang2025",
        "MLLMs Know Where to Look: Training-free Perception of Small Visual Details with Multimodal LLMs",
        "Zhang and Khayatkhoei and Chhikara and Ilievski", 2025, "2502.17422", "ICLR 2025",
    ),
    Reference(
        "wu2024", "Retrieval Head Mechanistically Explains Long-Context Factuality", "Wu and others", 2024,
        "2404.15574", "Retrieval heads",
    ),
    Reference("xiao2024", authors="Xiao and others", year=2024, arxiv="2309.17453", note="StreamingLLM, ICLR 2024"),
    Reference("barbero2025", "Why do LLMs attend to the first token?", "Barbero and others", 2025, "2504.02732"),
    Reference("catch2025", "Attention sinks: catch, tag, release", "Zhang and others", 2025, "2502.00919"),
    Reference(
        "wu2025", "On the emergence of position bias in transformers", "Wu and others", 2025, "2502.01951", "ICML 2025"
    ),
    Reference("sandoval2025", authors="Sandoval-Segura and others", year=2025, arxiv="2504.03889", note="Idle heads"),
    Reference("owen2025", authors="Owen and others", year=2025, arxiv="2503.22329", note="On massive activations"),
    Reference("softpick", arxiv="2504.20966", note="Softpick"),
    Reference("affine", arxiv="2602.23057", note="Affine-scaled attention"),
    Reference(
        "kukleva2025", authors="Kukleva and Simsar and Tonioni and Naeem and Tombari and Lenssen and Schiele",
        arxiv="2509.22650", note="RefAM",
    ),
    Reference(
        "chen2025", authors="Chen and Liu and Han and Xia and Cremers and Torr and Tresp and Gu", year=2025,
        arxiv="2507.15807", note="DARA, COLM 2025",
    ),
    Reference(
        "li2026", authors="Li and Ye and Feng and Zhong and Ma and Feng", year=2026, arxiv="2511.05923",
        note="FCCT and IRI, AAAI 2026",
    ),
    Reference(
        "aki", "Seeing is Understanding: Unlocking Causal Attention into Modality-Mutual Attention for Multimodal LLMs",
        "Wang and Wang and Suzuki and Kobayashi", 2025, "2503.02597", "AKI",
    ),
    Reference("arif2025", authors="Arif and Dip and Hussain and Zhang and Thomas", arxiv="2501.12206", note="PAINT"),
    Reference(
        "ahn2025", "Fine-Grained Perturbation Guidance via Attention Head Selection",
        "Ahn and Kang and Lee and Kim and Min and Jang and Lee and Paul and Hong and Kim", 2025, "2506.10978",
        "HeadHunter and SoftPAG",
    ),
    Reference("visionfunnel2025", "Visual Funnel: Resolving Contextual Blindness in Multimodal Large Language Models",
        year=2025, arxiv="2512.10362"),
    Reference("xu2025", "Rethinking Visual Token Reduction in LVLMs under Cross-modal Misalignment",
        "Xu and Wang and Luo and Du", 2025, "2506.22283", "VisionDrop"),
    Reference("vflowopt2025",
        "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided Optimization",
        year=2025, arxiv="2508.05211"),
    Reference("algorithms2026", year=2026, arxiv="2606.08105", note="Two algorithms of sink heads"),
    Reference("moh", note="MoH: mixture-of-head attention"),
    Reference("dyvte", authors="Wu and Lin and Ye and Zhou and Sun and Ji", note="DyVTE: dynamic visual-token exit"),
    Reference("registers2026", year=2026, arxiv="2604.14433", note="Zeroing overstates the need for registers"),
    Reference("survey", arxiv="2604.10098", note="Survey of attention sinks"),
)  # fmt: skip

REFERENCES: dict[str, Reference] = {entry.key: entry for entry in _ENTRIES}
"""All papers by BibTeX key."""
