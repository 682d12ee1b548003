"""The papers that sinkscope's definitions, probes and edits come from, as plain values and as BibTeX.

Only facts that were established are here: a field that is not known is left out, and
names stand as far as they are known.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """One paper: BibTeX key, title, authors joined by ``and``, year, arXiv id, note (empty where not known)."""

    key: str
    title: str = ""
    authors: str = ""
    year: int = 0
    arxiv: str = ""
    note: str = ""

    @property
    def url(self) -> str:
        """Return the address of the paper: its page on arXiv or OpenReview, empty where neither is known."""
        if self.arxiv:
            return f"https://arxiv.org/abs/{self.arxiv}"
        review = re.search(r"OpenReview (\w+)", self.note)
        return f"https://openreview.net/forum?id={review.group(1)}" if review else ""

    def bibtex(self) -> str:
        """Return the BibTeX entry, in ASCII with the accents as BibTeX writes them; an entry has a title and a year.

        Where the title is not known, the note stands for it.
        """
        fields = {
            "title": "{" + (self.title or self.note) + "}" if self.title or self.note else "",
            "author": self.authors,
            "year": str(self.year or "") or ("20" + self.arxiv[:2] if self.arxiv else ""),
            "eprint": self.arxiv,
            "archiveprefix": "arXiv" if self.arxiv else "",
            "url": self.url,
            "note": self.note if self.title else "",
        }
        lines = [f"  {name} = {{{_ascii(value)}}}," for name, value in fields.items() if value]
        return "\n".join([f"@misc{{{self.key},", *lines, "}"])


_ACCENTS = {"\u0301": "'", "\u0300": "`", "\u0308": '"', "\u0302": "^", "\u0303": "~", "\u030c": "v "}


def _ascii(text: str) -> str:
    """Write accents as BibTeX does (``{\\'e}``), which every version and style of it reads."""
    out: list[str] = []
    for character in unicodedata.normalize("NFD", text):
        accent = _ACCENTS.get(character)
        if accent is None:
            out.append(character)
        else:
            out[-1] = "{\\" + accent + out[-1] + "}"
    return "".join(out).replace("&", r"\&").replace("%", r"\%")


_ENTRIES: tuple[Reference, ...] = (
    Reference(
        "gu2025", "When Attention Sink Emerges in Language Models: An Empirical View",
        "Xiangming Gu and Tianyu Pang and Chao Du and Qian Liu and Fengzhuo Zhang and Cunxiao Du and "
        "Ye Wang and Min Lin",
        2025, "2410.10781", "ICLR 2025",
    ),
    Reference(
        "sun2024",
        "Massive Activations in Large Language Models",
        "Mingjie Sun and Xinlei Chen and J. Zico Kolter and Zhuang Liu", 2024,
        "2402.17762", "COLM 2024",
    ),
    Reference(
        "guo2024",
        "Active-Dormant Attention Heads: Mechanistically Demystifying Extreme-Token Phenomena in LLMs",
        "Tianyu Guo and Druv Pai and Yu Bai and Jiantao Jiao and Michael I. Jordan and Song Mei", 2024, "2410.13835",
    ),
    Reference(
        "han2025",
        "ZeroTuning: Unlocking the Initial Token's Power to Enhance Large Language Models Without Training",
        "Feijiang Han and Xiaodong Yu and Jianheng Tang and Delip Rao and Weihua Du and Lyle Ungar",
        2025, "2505.11739", "ICLR 2026",
    ),
    Reference(
        "kan2025",
        "RAR: Reversing Visual Attention Re-Sinking for Unlocking Potential in Multimodal Large Language Models",
        "Kan and Li and Liu and Yang and Jiang and Liu and Jiang and Sun and Liao and Yang",
        year=2026, note="ICLR 2026, OpenReview xTbFeDhdRG",
    ),
    Reference(
        "kang2025", "See What You Are Told: Visual Attention Sink in Large Multimodal Models",
        "Seil Kang and Jinyeong Kim and Junhyeok Kim and Seong Jae Hwang", 2025, "2503.03321", "ICLR 2025",
    ),
    Reference(
        "wong2025", "On the Existence and Behaviour of Secondary Attention Sinks",
        "Jeffrey T. H. Wong and Cheng Zhang and Louis Mahon and Wayne Luk and Anton Isopoussu and Yiren Zhao",
        2025, "2512.22213",
    ),
    Reference(
        "yu2024",
        "Unveiling and Harnessing Hidden Attention Sinks: "
        "Enhancing Large Language Models without Training through Attention Calibration",
        "Zhongzhi Yu and Zheng Wang and Yonggan Fu and Huihong Shi and Khalid Shaikh and Yingyan Celine Lin",
        2024, "2406.15765", "ICML 2024",
    ),
    Reference(
        "zhang2023", "Tell Your Model Where to Attend: Post-hoc Attention Steering for LLMs",
        "Qingru Zhang and Chandan Singh and Liyuan Liu and Xiaodong Liu and Bin Yu and Jianfeng Gao and Tuo Zhao",
        2023, "2311.02262", "ICLR 2024",
    ),
    Reference(
        "autopasta", "Model Tells Itself Where to Attend: Faithfulness Meets Automatic Attention Steering",
        "Qingru Zhang and Xiaodong Yu and Chandan Singh and Xiaodong Liu and Liyuan Liu and Jianfeng Gao and Tuo Zhao "
        "and Dan Roth and Hao Cheng", 2024, "2409.10790", "AutoPASTA",
    ),
    Reference(
        "qiu2025", "Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free",
        "Zihan Qiu and Zekun Wang and Bo Zheng and Zeyu Huang and Kaiyue Wen and Songlin Yang and Rui Men and "
        "Le Yu and "
        "Fei Huang and Suozhi Huang and Dayiheng Liu and Jingren Zhou and Junyang Lin",
        2025, "2505.06708", "NeurIPS 2025",
    ),
    Reference(
        "darcet2024", "Vision Transformers Need Registers",
        "Timothée Darcet and Maxime Oquab and Julien Mairal and Piotr Bojanowski", 2024,
        "2309.16588", "ICLR 2024",
    ),
    Reference(
        "jiang2025", "Vision Transformers Don't Need Trained Registers",
        "Nick Jiang and Amil Dravid and Alexei A. Efros and Yossi Gandelsman",
        2025, "2506.08010", "NeurIPS 2025",
    ),
    Reference(
        "he2025",
        "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence",
        "Jinghan He and Kuan Zhu and Haiyun Guo and Junfeng Fang and Zhenglin Hua and Yuheng Jia and Ming Tang and "
        "Tat-Seng Chua and Jinqiao Wang", 2025, "2412.13949", "ACL 2025",
    ),
    Reference(
        "zhao2025", "Attention Debiasing for Token Pruning in Vision-Language Models",
        "Kai Zhao and Wubang Yuan and Yuchen Lin and Liting Ruan and Xiaofeng Lu and Deng-Ping Fan and "
        "Ming-Ming Cheng and "
        "Dan Zeng", 2025, "2508.17807",
    ),
    Reference(
        "text_dominance2025",
        "When Language Overrules: Revealing Text Dominance in Multimodal Large Language Models",
        "Huyu Wu and Meng Tang and Xinhan Zheng and Haiyun Jiang", 2025, "2508.10552",
    ),
    Reference(
        "anand2026",
        "Mitigating Attention Sinks and Massive Activations in Audio-Visual Speech Recognition with LLMs",
        "{Anand} and Umberto Cappellazzo and Stavros Petridis and Maja Pantic", 2026, "2510.22603", "ICASSP 2026",
    ),
    Reference(
        "ge2025", "Focusing by Contrastive Attention: Enhancing VLMs' Visual Reasoning",
        "Yuyao Ge and Shenghua Liu and Yiwei Wang and Lingrui Mei and Baolong Bi and Xuanshan Zhou and Jiayu Yao and "
        "Jiafeng Guo and Xueqi Cheng", 2025, "2509.06461",
    ),
    Reference(
        "gift2026",
        "Capturing Gaze Shifts for Guidance: Cross-Modal Fusion Enhancement for VLM Hallucination Mitigation",
        "Zheng Qi and Chao Shang and Evangelia Spiliopoulou and Nikolaos Pappas", 2026, "2510.22067", "ICML 2026",
    ),
    Reference(
        "zhang2026", "Hallucination Begins Where Saliency Drops",
        "Xiaofeng Zhang and Yuanchao Zhu and Chaochen Gu and Xiaosong Yuan and Qiyan Zhao and Jiawei Cao and "
        "Feilong Tang and Sinan Fan and Yaomin Shen and Chen Shen and Hao Tang", 2026, "2601.20279", "ICLR 2026",
    ),
    Reference(
        "zhang2025",
        "MLLMs Know Where to Look: Training-free Perception of Small Visual Details with Multimodal LLMs",
        "Jiarui Zhang and Mahyar Khayatkhoei and Prateek Chhikara and Filip Ilievski", 2025, "2502.17422", "ICLR 2025",
    ),
    Reference(
        "wu2024", "Retrieval Head Mechanistically Explains Long-Context Factuality",
        "Wenhao Wu and Yizhong Wang and Guangxuan Xiao and Hao Peng and Yao Fu", 2024, "2404.15574", "ICLR 2025",
    ),
    Reference(
        "xiao2024", "Efficient Streaming Language Models with Attention Sinks",
        "Guangxuan Xiao and Yuandong Tian and Beidi Chen and Song Han and Mike Lewis", 2024, "2309.17453",
        "StreamingLLM, ICLR 2024",
    ),
    Reference(
        "barbero2025", "Why do LLMs attend to the first token?",
        "Federico Barbero and Álvaro Arroyo and Xiangming Gu and Christos Perivolaropoulos and Michael Bronstein and "
        "Petar Veličković and Razvan Pascanu", 2025, "2504.02732",
    ),
    Reference(
        "catch2025", "Attention Sinks: A 'Catch, Tag, Release' Mechanism for Embeddings",
        "Stephen Zhang and Mustafa Khan and Vardan Papyan", 2025, "2502.00919", "NeurIPS 2025",
    ),
    Reference(
        "wu2025", "On the Emergence of Position Bias in Transformers",
        "Xinyi Wu and Yifei Wang and Stefanie Jegelka and Ali Jadbabaie", 2025, "2502.01951", "ICML 2025"
    ),
    Reference(
        "sandoval2025", "Identifying and Evaluating Inactive Heads in Pretrained LLMs",
        "Pedro Sandoval-Segura and Xijun Wang and Ashwinee Panda and Micah Goldblum and Ronen Basri and "
        "Tom Goldstein and David Jacobs", 2025, "2504.03889", "ICLR 2026",
    ),
    Reference(
        "owen2025", "A Refined Analysis of Massive Activations in LLMs",
        "Louis Owen and Nilabhra Roy Chowdhury and Abhay Kumar and Fabian Güra", 2025, "2503.22329",
    ),
    Reference(
        "softpick", "Softpick: No Attention Sink, No Massive Activations with Rectified Softmax",
        "Zayd M. K. Zuhri and Erland Hilman Fuadi and Alham Fikri Aji", 2025, "2504.20966",
    ),
    Reference(
        "affine", "Affine-Scaled Attention: Towards Flexible and Stable Transformer Attention",
        "Jeongin Bae and Baeseong Park and Gunho Park and Minsub Kim and Joonhyung Lee and Junhee Yoo and "
        "Sunghyeon Woo and Jiwon Ryu and Se Jung Kwon and Dongsoo Lee", 2026, "2602.23057",
    ),
    Reference(
        "chen2026", "Attention Sinks Induce Gradient Sinks", "Yihong Chen and Quanming Yao", 2026, "2603.17771",
    ),
    Reference(
        "qiu2026",
        "A Unified View of Attention and Residual Sinks: Outlier-Driven Rescaling is Essential for Transformer "
        "Training",
        "Zihan Qiu and Zeyu Huang and Kaiyue Wen and Peng Jin and Bo Zheng and Yuxin Zhou and Haofeng Huang and "
        "Zekun Wang and Xiao Li and Huaqing Zhang and Yang Xu and Haoran Lian and Siqi Zhang and Rui Men and "
        "Jianwei Zhang and Ivan Titov and Dayiheng Liu and Jingren Zhou and Junyang Lin", 2026, "2601.22966",
    ),
    Reference(
        "rohrbach2018", "Object Hallucination in Image Captioning",
        "Anna Rohrbach and Lisa Anne Hendricks and Kaylee Burns and Trevor Darrell and Kate Saenko", 2018, "1809.02156",
        "CHAIR, EMNLP 2018",
    ),
    Reference(
        "li2023pope", "Evaluating Object Hallucination in Large Vision-Language Models",
        "Yifan Li and Yifan Du and Kun Zhou and Jinpeng Wang and Wayne Xin Zhao and Ji-Rong Wen", 2023, "2305.10355",
        "POPE, EMNLP 2023",
    ),
    Reference(
        "kukleva2025", "RefAM: Attention Magnets for Zero-Shot Referral Segmentation",
        "Anna Kukleva and Enis Simsar and Alessio Tonioni and Muhammad Ferjad Naeem and Federico Tombari and "
        "Jan Eric Lenssen and Bernt Schiele", 2025, "2509.22650", "RefAM",
    ),
    Reference(
        "chen2025", "True Multimodal In-Context Learning Needs Attention to the Visual Context",
        "Shuo Chen and Jianzhe Liu and Zhen Han and Yan Xia and Daniel Cremers and Philip Torr and Volker Tresp and "
        "Jindong Gu", 2025, "2507.15807", "DARA, COLM 2025",
    ),
    Reference(
        "li2026",
        "Causal Tracing of Object Representations in Large Vision Language Models: Mechanistic Interpretability and "
        "Hallucination Mitigation",
        "Qiming Li and Zekai Ye and Xiaocheng Feng and Weihong Zhong and Weitao Ma and Xiachong Feng", 2026,
        "2511.05923", "FCCT and IRI, AAAI 2026",
    ),
    Reference(
        "arif2025",
        "PAINT: Paying Attention to INformed Tokens to Mitigate Hallucination in Large Vision-Language Model",
        "Kazi Hasan Ibn Arif and Sajib Acharjee Dip and Khizar Hussain and Lang Zhang and Chris Thomas", 2025,
        "2501.12206", "PAINT",
    ),
    Reference(
        "aki", "Seeing is Understanding: Unlocking Causal Attention into Modality-Mutual Attention for Multimodal LLMs",
        "Wei-Yao Wang and Zhao Wang and Helen Suzuki and Yoshiyuki Kobayashi", 2025, "2503.02597", "AKI",
    ),
    Reference(
        "ahn2025", "Fine-Grained Perturbation Guidance via Attention Head Selection",
        "Donghoon Ahn and Jiwon Kang and Sanghyun Lee and Minjae Kim and Jaewon Min and Wooseok Jang and "
        "Saungwu Lee and "
        "Sayak Paul and Susung Hong and Seungryong Kim", 2025, "2506.10978",
        "HeadHunter and SoftPAG",
    ),
    Reference("visionfunnel2025", "Visual Funnel: Resolving Contextual Blindness in Multimodal Large Language Models",
        year=2025, arxiv="2512.10362"),
    Reference("xu2025", "Rethinking Visual Token Reduction in LVLMs under Cross-modal Misalignment",
        "Rui Xu and Yunke Wang and Yong Luo and Bo Du", 2025, "2506.22283", "VisionDrop"),
    Reference("vflowopt2025",
        "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided Optimization",
        "Sihan Yang and Runsen Xu and Chenhang Cui and Tai Wang and Dahua Lin and Jiangmiao Pang", 2025, "2508.05211",
        "ICCV 2025"),
    Reference(
        "algorithms2026", "A Unifying View of Attention Sinks: Two Algorithms, Two Solutions",
        "Lukas Fesser and Mozes Jacobs and Thomas Fel and Andy Keller and Sham Kakade", 2026, "2606.08105",
    ),
    Reference(
        "moh", "MoH: Multi-Head Attention as Mixture-of-Head Attention",
        "Peng Jin and Bo Zhu and Li Yuan and Shuicheng Yan", 2025, "2410.11842", "ICML 2025",
    ),
    Reference(
        "dyvte",
        "Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the Empirical Findings",
        "Qiong Wu and Wenhao Lin and Yiyi Zhou and Weihao Ye and Zhanpeng Zen and Xiaoshuai Sun and Rongrong Ji",
        2025, "2411.19628", "DyVTE, NeurIPS 2025",
    ),
    Reference(
        "registers2026", "Zero-Ablation Overstates Register Content Dependence in DINO Vision Transformers",
        "Felipe Parodi and Jordan K. Matelsky and Melanie Segado", 2026, "2604.14433",
    ),
    Reference(
        "xue2025", "Deconstructing Attention: Investigating Design Principles for Effective Language Modeling",
        "Huiyin Xue and Nafise Sadat Moosavi and Nikolaos Aletras", 2025, "2510.11602",
    ),
    Reference(
        "survey", "Attention Sink in Transformers: A Survey on Utilization, Interpretation, and Mitigation",
        "Zunhai Su and Hengyuan Zhang and Wei Wu and Yifan Zhang and Yaxiu Liu and He Xiao and Qingyao Yang and "
        "Yuxuan Sun and Rui Yang and Chao Zhang and Keyu Fan and Weihao Ye and Jing Xiong and Hui Shen and "
        "Chaofan Tao and Taiqiang Wu and Zhongwei Wan and Yulei Qian and Yuchen Xie and Ngai Wong", 2026, "2604.10098",
    ),
    Reference(
        "binkowski2026", "Attention Sinks as Internal Signals for Hallucination Detection in Large Language Models",
        "Jakub Binkowski and Kamil Adamczewski and Tomasz Kajdanowicz", 2026, "2604.10697", "SinkProbe",
    ),
)  # fmt: skip

REFERENCES: dict[str, Reference] = {entry.key: entry for entry in _ENTRIES}
"""All papers by BibTeX key."""
